"""What lies on the disk: study folders, trials in an Optuna storage, files that appear whole or not at all.

Imports ``core``; never torch. Start with ``study_folder`` (where a study's files are), then ``study_store`` (its
trials).
"""
