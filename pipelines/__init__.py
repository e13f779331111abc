"""The flows that consume features: no underscore = the flow of one verb, in three parts: Config, run, the act.

`run(config)` turns names into objects, here and nowhere else; the act works on objects; what comes back is a report.
"""

import featurecache  # noqa: F401  # from here on `heads` is ours, also beside a file of the user with that name
