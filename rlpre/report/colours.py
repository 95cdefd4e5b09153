"""Colours and dashes that arms are told apart by."""

# Okabe and Ito 2008, told apart with any colour vision; controls are black and grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CONTROLS = ("#000000", "#707070", "#A0A0A0")
DASHES = ("-", "--", ":")
