"""Training: what every verb that trains shares. One loop, one checkpoint, one choice.

    settings     what users say of a training          problem      what heads are built for, and whether they can be
    cells        the heads of a sweep, from its words  training     cells -> trained heads, from one read of the rows
    fitting      the only loop, over a stack of heads  stack        M heads of equal shape as one
    optimizers   rules of the steps                    schedules    learning rates over the steps
    judging      how good a stack is on validation     selection    the best cell, by validation alone
    resuming     the checkpoint of a stopped training  distributed  several processes as one
    stepping     how values move, as users say it      recipe       all that the loop is told
    outputs      a head over all rows of a source      criterion    what an objective says of a batch
    jobs         cells in processes, at the same time  closing      the last line of a run: how fitted, parameters

`train_head`, `run_protocol` and the estimator go through `training.train_cells`, and `train_online` through `fitting.fit`
with a backbone before the head. A head ends as it would alone, whatever is trained beside it.
"""
