"""`vllamactl bench` (floors 3 and 4): what clients of a server see, measured as they see it, over HTTP.

``workload``, ``plan``, ``answers``, ``figures``, ``comparing`` and ``report`` are pure: what to ask, when, what came
back, what it says. ``http`` is the only door to aiohttp; ``playing`` holds the stopwatch.
"""
