"""How many genomes a space holds, which number each has, and drawing them.

    places       the compiled space as a tree of positions
    walking      one walk for everything that counts, draws and checks
    counting     exact sizes
    estimating   intervals where nothing exact is known
    intervals    intervals of what is estimated by drawing
    indexing     genomes by number, both ways
    sampling     random genomes: under rules, exactly uniform, spread over a cost
    repair       genomes brought within constraints that reject nearly everything
"""
