"""How to look: a sweep asks a strategy for candidates, has them evaluated, and writes everything down.

    sweep       Sweep: the definition, checked in its constructor; run, dry_run
    checks      what a definition is checked for, in the words of the user
    definition  a sweep as JSON: the journal's first event, compared on resume
    session     one run of a sweep: journal, workers, trackers, Ctrl-C
    stages      supernet, reference point, search, twin, retraining, test split, export: each done once
    loop        ask, evaluate, tell, until the budget is spent
    dispatch    jobs to an executor a few at a time, stoppable
    resume      a sweep's state from its journal; strategies by replay
    launch      sweeps from a user's file or a directory, for the command line
    journal     SQLite, append-only, the single truth (lock: one writer at a time)
    strategies/ random, evolution, local search, Optuna
    executors/  where candidates are evaluated: inline, local (worker: its child process), ray
    pareto      dominance, ranks, crowding, hypervolume
    front       Front: the answer of a sweep (origin: its points as architectures and modules)
    fidelity    rank correlation of inherited with standalone scores
    seeds       the seed of an evaluation
    kinship     whose weights a candidate starts from
    forecast    what a sweep would take (rehearsal: a few evaluations made; estimating: the whole from them)
    progress    what a person sees meanwhile (summary: and at the end)
    results     a sweep as its journal tells it, for every view
    tracking    trials shown in MLflow (runs, saved_views: what is written there)
    mirror      trials copied into an Optuna storage
"""
