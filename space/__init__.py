"""What an architecture is.

    choices, grammar            the vocabulary: choice, integer, real, subset, permutation, optional, repeat, tied; rule
    compiling, spec, outline    a space compiled into a tree in which every decision has one path
    space         Space: sampling, canonical form, variation, counting, encoding
    editing, variation, crossing, nearby, distance   genomes: canonical form, mutation, crossover, neighbours, a metric
    constraints/  rules over decisions and costs, declared
    places, walking, counting, indexing, estimating, intervals   how many genomes, and which number each has
    sampling, repair            random genomes: under rules, exactly uniform, spread over a cost, repaired
    encoding      genomes and networks as vectors
    serialise, versions, schema/   spaces, genomes and architectures as JSON, with their versions
    genome        Genome: the decisions of one candidate, JSON, torch-free
    plan          Block, Once, Loop, Plan: a network with every number fixed
    macros/, tree               parts made of parts; walks over a resolved body
    scaling, mup, twins         a motif at another size, with starting values and rates that carry over
    architecture  Architecture: a genome resolved, with graph, hash, cost and module
    graph, canonical, drawing   the typed graph, its canonical labelling, its picture
    operator, operators/        what an operator declares, and the operators
    axes, taking  named axes, and the one function that takes a smaller tensor from a larger
    layout, held, skeletons, supernet   where shared weights live, the modules they run through, and the supernet
    permuting, importance, ordering     which axes may be permuted, what matters, and the most important first
    model         the module of a plan
    presets/      published families as spaces and as fixed architectures
    export/       the standalone model folder
"""
