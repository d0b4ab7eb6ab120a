"""Persistence: study folders, trials in an Optuna storage, atomic file writes.

Imports ``core``; never torch. Start with ``study_folder`` (the paths of a study's files), then ``study_store`` (its
trials).
"""
