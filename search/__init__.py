"""How to look: a sweep asks a strategy for candidates, has them evaluated, and writes everything down.

    sweep       Sweep: the definition, checked in its constructor; run, dry_run
    checks      what a definition is checked for, in the words of the user
    definition  a sweep as JSON: the journal's first event, compared on resume
    loop        ask, evaluate, tell, until the budget is spent
    stages      what comes before and after the loop: supernet, reference point, twin, retraining, test split
    resume      a sweep's state from its journal; strategies by replay
    journal     SQLite, append-only, the single truth (lock: one writer at a time)
    strategies/ random, evolution, local search, Optuna
    executors/  where candidates are evaluated: inline, local, ray
    pareto      dominance, ranks, crowding, hypervolume
    front       Front: the answer of a sweep
    fidelity    rank correlation of inherited with standalone scores
    seeds       the seed of an evaluation
    progress    what a person sees meanwhile
    mirror      trials copied into an Optuna storage
    tracking    trials shown in MLflow
"""
