"""A space compiled: a tree in which every possible decision has one fixed path.

    compiling   from the user's dataclasses to the tree
    spec        the tree
    outline     what is tied, and what holds layers
    checking    everything that can be wrong with a space, found before any work starts
    reaching    what of it the rules over decisions exclude
"""
