"""Layer 2: candles in, indicators out.

1. `indicator.py`  what an indicator is: `Kind` (a family: sma), `Indicator` (a kind with its arguments: sma(volume, 20)), and the
                   `@indicator` that declares one: what it reads, writes and remembers, and when its first value is there
2. `kernels.py`    the indicators: each a declaration and one pure, compiled loop, `(memory, *columns, *params) -> (memory, outputs)`
3. `catalog.py`    which exist, in topological order; which are stored unasked; what each one reads all the way up (`closure`)
4. `run.py`        a kernel over arrays in RAM: `run` for new bars, `calculate` for several indicators over whole candles
5. `advance.py`    the same over the store: new bars -> rows and memory in one transaction

1 to 4 know neither store nor Dagster. The law that all of it stands on: `run(whole)` equals `run(head)` then `run(tail)` with the
memory carried over, bit for bit, for every split. So one kernel serves ten years, one day and one live bar.

Another indicator, in a file outside of the package:

    import numpy as np

    from mdms_pipeline.calculate.catalog import register
    from mdms_pipeline.calculate.indicator import indicator
    from mdms_pipeline.calculate.kernels import jit, sma

    @register
    @indicator(source="close", reads=lambda source, n: (source, sma(source, n)))
    @jit
    def distance(memory, x, mean, n=20):
        \"\"\"Distance of `x` from its mean of `n` bars, as a fraction of the mean. A mean of 0: unknown.\"\"\"
        out = np.empty((1, x.size))
        for i in range(x.size):
            out[0, i] = x[i] / mean[i] - 1 if mean[i] != 0 else np.nan
        return memory.copy(), out

`distance(20)` now has a table, an asset below candles and sma, a column `distance_20`, a first value at bar 19 (sma's), and can be
named in rules. One that remembers says so: `memory=lambda n: (0.0,)`, and `lag=` the bars that it adds before its first value,
`settles=` those until its seed is forgotten. Raise `version=` when its bits change: all that stands on it is then made anew.
"""
