"""Tasks and their examples: tasks and kinds of task, table readers, labels, splits, tokenisation, metrics, the demo.

Imports ``storage`` and ``core``; torch and transformers only inside functions. Start with ``tasks``: a built-in task is
one row of its table. Then ``loading`` (texts and labels), ``splits`` (selection and certification), ``tokenization``.
What differs between kinds of task, such as scores and tags, is in ``kinds``.
"""
