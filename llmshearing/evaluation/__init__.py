"""What a model can do, and how fast it is, beside another.

    suites   -> which tasks, with which shots and which metric
    battery  -> the tasks of the suite `offline`: documents as lm-eval reads them  <- fetching: two archives
    harness  -> one task on one model by lm-eval      }
    perplexity -> losses of windows of text           } -> results: `evaluation.json` and a table
    speed    -> tokens a second, seconds and bytes      -> `speed.json` and a table

`llmshearing evaluate` and `llmshearing speed` are the commands; the report reads `results`, which imports
neither torch nor lm-eval.
"""
