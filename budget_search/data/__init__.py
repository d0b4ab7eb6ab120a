"""Tasks and their examples: built-in tasks, table readers, labels, splits, tokenisation, metrics, the demo task.

Imports ``storage`` and ``core``; torch and transformers only inside functions. Start with ``tasks``: a built-in task is
one row of its table. Then ``loading`` (texts and labels), ``splits`` (selection and certification), ``tokenization``.
"""
