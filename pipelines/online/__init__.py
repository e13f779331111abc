"""Online: what `train_online` trains, before the loop has it.

    settings   what users say                  planning   names to objects: images, backbone with its method, head, rates
    starting   going on from a finished run: its head, and what it trained in its backbone
    settled    which head and method that run has, where nobody names them
    guide      what stands beside them for a student: teachers, and an objective that heeds them

The loop, the heads, the metrics and the record are those of cached training.
"""
