"""What an architecture is worth: tasks, training, objectives and the measurements behind them.

    objectives.py   Objective, Estimate and the built-in objectives by name
    latency.py      latency(): milliseconds on a device, with an interval
    devices.py      which devices there are, and what a measurement says about its machine
    tasks/          data, loss and metric: text(), images()
    training.py     train(): a supernet or a plain module, checkpointed, resumable to the bit
    sampling.py     which subnets a training step visits, and what each of them learns from
    optim.py        AdamW that touches only what the step touched
    evaluation.py   Evaluator: one candidate in, its numbers out
    cost.py         multiply-adds by two independent counters (thop, torch's flop counter)
"""
