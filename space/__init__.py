"""What an architecture is.

    choices, grammar   the vocabulary: choice, integer, real, subset, permutation, optional, repeat, tied; rule
    space              Space: sampling, canonical form, variation, counting, encoding
    compiled/          a space as a tree in which every decision has one path, and the checks of it
    constraints/       rules over decisions and costs, declared
    counting/          how many genomes, which number each has; drawing them
    genome             Genome: the decisions of one candidate, JSON, torch-free
    variation/         canonical form, mutation, crossover, neighbours, a metric
    encoding           genomes and networks as vectors
    stored/, schema/   spaces, genomes and architectures as JSON, with their versions
    plan               Block, Once, Loop, Plan: a network with every number fixed
    macros/, tree      parts made of parts; walks over a resolved body
    architecture       Architecture: a genome resolved, with graph, hash, cost and module
    graph, canonical, drawing   the typed graph, its canonical labelling, its picture
    operator, axes     what an operator declares: sizes, named axes, costs, its source
    operators/         the operators
    model, joined      the module of a plan; its blocks with placed norms and other joins
    elastic/           the supernet: where shared weights live, takes, extraction, importance order
    scaling/           a motif at another size, with starting values and rates that carry over
    equivalents/       trained networks as other networks that compute the same
    presets/           published families as spaces and as fixed architectures
    export/            the standalone model folder
"""
