"""Trialling: the trials of a protocol with every head, and the tables of what they gave.

    trialling   a trial: its heads trained on its fold, one chosen, its test rows measured
    results     tables, curves and intervals over the trials      pairing   two heads by the same draws of a bootstrap
    leaks       test rows that are near-duplicates of rows that are learnt from

What the trials are is said by `pipelines/protocols`, which knows no head.
"""
