"""What a measurement would say of a candidate that nobody measured, with an interval.

    predictor.py    Predictor: fit, predict with a conformal interval, update; Report: what was noticed
    table.py        Table: samples as named numbers, operators by position, graphs, amounts, a base, order; as_table
    typed_graph.py  TypedGraph: nodes with types and sizes, for topologies never seen
    gaussian.py     GaussianProcess over all of these, with outliers and measuring sessions
    kernels.py      the covariance terms that it adds up
    posterior.py    the search for its parameters
    additive.py     sums over positions: ridge regression, and exact additivity recognised
    prices.py       sums of amounts times prices, found from whole samples
    boosting.py     gradient boosting (scikit-learn)
    conformal.py    the margins of intervals
    drift.py        shifts between measuring sessions
    known_devices.py    samples measured on known devices, and a model of each for samples that were not
    transfer.py     Transfer: a new device from a few measured samples and from devices already known
"""

from .additive import Additive, additivity
from .architectures import features
from .boosting import Boosting
from .drift import Drift, Session, find_drift
from .gaussian import Belief, GaussianProcess
from .predictor import Model, Prediction, Predictor, Report
from .table import Table, as_table
from .transfer import Transfer
from .typed_graph import TypedGraph

__all__ = ["Additive", "Belief", "Boosting", "Drift", "GaussianProcess", "Model", "Prediction", "Predictor", "Report",
           "Session", "Table", "Transfer", "TypedGraph", "additivity", "as_table", "features", "find_drift"]
