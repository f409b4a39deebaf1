"""Reports of runs of the zoo: tables over seeds, plots, and a page that has both.

``python -m egg_sparse.report FOLDER`` writes a report. From Python, :func:`egg_sparse.report.runs.read_all` finds and
reads runs, :func:`egg_sparse.report.runs.frame` makes a pandas.DataFrame of them, and
:func:`egg_sparse.report.write.write` writes a report of them.
"""
