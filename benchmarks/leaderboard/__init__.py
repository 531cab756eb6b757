"""Methods of choosing what stays, on the same sources, shapes, data, budgets and seeds.

    python -m benchmarks.leaderboard benchmarks/leaderboard/small.yaml

plan.py    one YAML file -> the cells: a method, a target, a trial and a seed, with the commands of each
cells.py   runs cells, one or several at a time; a finished one is not repeated
page.py    what was measured -> a result file, tables and plots
"""
