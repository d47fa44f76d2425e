"""Operators on genomes.

    editing     the canonical form, and moving the layers of a repeat
    variation   mutation and neighbourhoods
    crossing    crossover
    nearby      which options of a gene lie near another
    distance    a metric that follows the nesting and aligns layers
"""
