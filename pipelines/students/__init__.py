"""Students: what `train_student` trains, before the one loop has it.

    settings   what users say                       rows       which rows teach, honestly or as the published code drew them
    planning   names to objects, and what is wrong  guiding    teachers and objective, put into an online training
    cells      the cells of a sweep                 comparing  what they came to: means, intervals, paired differences
    telling    scales and kernel distances          probing    concat_probe, which has no student

A student is the online mode with a small backbone that learns whole, and a head on its pooled vector.
"""
