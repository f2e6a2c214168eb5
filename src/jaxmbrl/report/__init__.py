"""The report of runs: one page that tells what was learned, how far the model and the critic can be believed, and where the
time went. It needs nothing but itself: no other file, no network.

`gathering` reads run folders, `curves` turns rows into charts, `diagnosing` restores a policy and plays it, `sections` says
what stands on the page, `page` writes it.
"""
