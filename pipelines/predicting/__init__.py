"""Predicting: images to answers through the backbone and the head of a run.

    predictor   `Predictor.load(RUN)`, with its weights checked against the recorded digest
    gathering   paths, folders, archives and pictures in memory as one list of images
    elsewhere   a run on the rows of another store or data set, with its classes by name

The verbs `predict`, `evaluate` and `export` are flows over them.
"""
