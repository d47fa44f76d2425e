"""How to look at the results of a sweep. Everything here reads journals and changes none.

    figures  plotly figures: the front, hypervolume, fidelity
    style    the look they share
    page     HTML that opens from disk
    report   the report, and the page of the front
    ui       MLflow's own interface on a sweep, opened at its Pareto front
"""
