"""Facts that can be checked: countries, cities, currencies, elements, sums; TruthfulQA.

`task` is what `circuits.load_task("facts")` returns; `python -m tasks.facts` asks a model and says
how many it gets right.

What the embedded model (smollm2-135m-instruct-q4) knows, asked 1,730 statements, each fact once:
right / wrong / not to be read

    capital  47 /  90 / 47     continent  69 /  48 / 81     addition        29 /  75 / 15
    country  25 /  93 / 66     currency   58 /  52 / 88     subtraction     10 / 101 /  7
    city    151 / 228 /  0     symbol     56 /  17 / 43     multiplication  25 /  90 /  3
                               element    14 /  56 / 46

which leaves 658 answers with as many right as wrong ones for every type, third of commonness and
phrasing.
"""

from tasks.facts.task import Facts

task = Facts()
