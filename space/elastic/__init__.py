"""Shared weights: one tensor per parameter, subnets as takes from it, and the most important entries first.

    layout       every operator a space can build, with the address of its parameters
    held         the declaration of every shared tensor
    taking       how a smaller tensor is taken from a larger one
    skeletons    modules without values, lent to every subnet that runs through them
    supernet     the shared tensors, subnets over them, extraction
    permuting    which named axes may be permuted, and permuting them
    importance   how much the entries of an axis matter
    ordering     a trained network put into the order of importance
"""
