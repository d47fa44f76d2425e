"""What an architecture is worth: tasks, training, objectives and the measurements behind them.

    objectives.py   Objective, Estimate and the built-in objectives by name
    latency.py      latency(): milliseconds on a device, with an interval
    devices.py      which devices there are, and what a measurement says about its machine
    predictors/     what a measurement would say of a candidate that nobody measured, with an interval
    tasks/          data, loss and metric: text(), images()
    training.py     train(): a supernet or a plain module, checkpointed, resumable to the bit
    strategies/     which subnets a training step visits, and what each of them learns from
    trainer.py      one training's state and what a step does to it
    pieces.py       cutting a step's work: which examples go through which subnet
    weights.py      the tensors a training holds, and which entries its subnets touched
    optim.py        AdamW and SGD that touch only what the step touched
    precision.py    mixed precision and its loss scale
    checkpoint.py   a training on disk
    distributed.py  several processes, each visiting other subnets of the same step
    calibration.py  calibrate(): batch statistics of an extracted subnet, measured anew
    evaluation.py   Evaluator: one candidate in, its numbers out
    cost.py         multiply-adds by two independent counters (thop, torch's flop counter)
    measured.py     measured_macs(): what ran on given batches, beside what the declarations expect
    byte_level.py   byte_probabilities(): what a model over tokens says of the next byte
    depth.py        losses of layers that tokens pass by or leave early: exits, routers, gates, faster streams
    chunks.py       chunk_loss(): what teaches attention to choose chunks
    ensembles.py    self_ensemble(): the mean over sub-models that are drawn as in training
    recursive.py    recursive(): a looped model from a trained one, by averages and low-rank rests
    linear_macs.py, attention_macs.py   what linear and softmax attention and their kin add to thop's (written_macs.py: and
                    convolutions and products that modules write out)
"""
