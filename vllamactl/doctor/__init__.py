"""`vllamactl doctor` (floor 4): looks at a machine and says what is wrong with it, and what to type.

Two halves. What looks (``machine``, ``systemd``, ``paths``, ``daemon``, ``program``, ``processes``, ``host``) gathers
facts and has no opinion; what judges (``judge_*``) turns facts into findings and touches nothing. ``examination`` runs
them together.
"""
