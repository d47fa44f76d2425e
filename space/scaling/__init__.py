"""A motif at another size.

    scaling   more layers of the same kind, a wider stream, heads of the same size
    mup       starting values and learning rates that carry over
    starts    starting values from the depth: DeepNet, Foundation Transformers, DeepScaleLM
    moments   variance of the signal at the start, from formulas
    twins     which parameter of a small network stands for which of a larger one
"""
