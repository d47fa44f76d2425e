"""What an architecture is.

    choices       the vocabulary: choice, integer, real, subset, repeat, tied
    spec          a space compiled into a tree in which every decision has one path
    space         Space: sampling, canonical form, variation, counting, encoding
    genome        Genome: the decisions of one candidate, JSON, torch-free
    plan          Block, Once, Loop, Plan: a network with every number fixed
    architecture  Architecture: a genome resolved, with graph, hash, cost and module
    graph, canonical, drawing   the typed graph, its canonical labelling, its picture
    operator, operators/        what an operator declares, and the operators
    axes          named axes, and the one function that takes a smaller tensor from a larger
    layout, supernet            where shared weights live, and the supernet
    model         the module of a plan
    export/       the standalone model folder
"""
