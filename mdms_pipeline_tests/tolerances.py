"""How far two right answers may differ, each with its reason. Tests of the split law have no tolerance: bits."""

# Relative. A float64 holds 16 digits; a mean of 200 values, then a ratio of two of them, may lose two or three.
ORACLE = 1e-12

# Relative to the column's largest value: where a result is a small difference of large numbers (macd, percent_b), its own size says
# nothing about the digits lost.
ORACLE_DIFFERENCE = 1e-13

# Relative. TA-Lib sums with one running sum over the whole history, which drifts by some 1e-16 per bar.
TALIB = 1e-9

# Relative to the column's largest value. TA-Lib's variance subtracts two large sums of squares: at 100 +/- 1, half of the digits.
TALIB_DEVIATION = 1e-8

# Relative. The sheets have 17 digits, made with other orders of summation.
SHEET = 1e-11

# Absolute. talipp's tests state 6 decimals, cut off rather than rounded.
SIX_DECIMALS = 1e-6

# Relative to the largest difference that two histories made: a seed counts for less than 1e-6 at `stable_after`, and a ratio of two
# means (rsi) carries the error of both, at a spread that may have shrunk since.
FORGOTTEN_SEED = 5e-6

# Relative. Deviation at prices of 1e8 with unit steps: distances are whole numbers, so only the last root and division round.
DEVIATION_AT_1E8 = 1e-12

# Relative to the column's largest value: a factor that is not a power of 2 rounds each price.
SCALE = 1e-9

# Relative. Two backtest engines add and subtract some thousand amounts in another order.
PEER_EQUITY = 1e-9
