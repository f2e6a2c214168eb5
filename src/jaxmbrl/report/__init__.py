"""The report of runs: one page with learning curves, diagnostics of the model and the critic, and where the time went. The
page is self-contained: it needs no other file and no network.

`gathering` reads run folders, `curves` turns rows into charts, `diagnosing` restores and evaluates a policy, `sections` has
the contents of the page, `page` writes it.
"""
