"""Complete studies and benchmarks, each a Python file that runs by itself.

    first_sweep     the study behind `bodyplan demo`: hybrid byte-level language models on embedded text
    benchmarks      every benchmark below in one page (`make bench` writes docs/benchmarks.md)
    bench_candidate what a candidate costs before anything is measured
    bench_cost      what its formulas and its whole workload take
    bench_forecast  what `--dry-run` says of small sweeps, and what they take
    bench_slicing   a training step through a supernet's views against the extracted module
    bench_loop      milliseconds per candidate of the in-process loop
    bench_executors milliseconds per candidate of the executors, Ray included
    bench_tracking  what MLflow costs a sweep
    supernet_fidelity  how well each way of training a supernet ranks candidates, against training them alone
                    (fidelity_work: what its workers do; fidelity_page: the tables of docs/fidelity.md)
    latency_tables  predictors against latencies that others measured (measured_tables: these; latency_page: docs/latency.md)
    device_study    networks measured on this machine: ranked twice, and predicted from half of them
    pruning_study   a trained transformer as a supernet, pruned by search (pruning_page: docs/pruning.md)
"""
