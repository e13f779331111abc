"""Exporting: a run as a folder that predicts without this package, and proves of itself that it is unchanged.

    graph          backbone and head as one exported program      onnx_file      the same as an ONNX file
    preprocessing  the images' way to tensors, as plain settings  standalone     predict.py of the folder: imports none of us
    proving        stored rows that the folder must predict       model_card     README.md of the folder

`pipelines/export.py` is the flow. `standalone` is copied as it is: what it imports must be had where nothing of ours is.
"""
