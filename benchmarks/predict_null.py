"""How often errors are "found" where there are none: 200 clean data sets without signal.

    python -m benchmarks.predict_null [RUNS]

Made problems with vectors that code them, and labels drawn by themselves; half of the data sets are
pairs of twins of which exactly one is wrong, in one group. A false alarm is a headline that says
errors were predicted, or an audit that finds a leak. Beside it, how often the permutation p of the
AUC and that of the largest effect are below .05. Each rate must lie under the largest number of
runs that a rate of 5% exceeds once in a thousand times. Then 40 data sets in which the number of
steps, which the prompt shows, decides: vectors predict errors there, and no better than the prompt.

What was predicted before the first measurement: headlines in at most 2.5% of the runs, because the
interval has two sides and the best baseline is chosen on the predicted rows; leaks in at most 1%;
the permutation p below .05 in 2 to 5% of the runs with the widening for shared training data
(scores.py), and in about 12% without it; headlines where the prompt decides in at most 2.5%.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from scipy.stats import binom
from tqdm import tqdm

from benchmarks.common import report
from circuits.predict import predict
from circuits.predict.scores import auc, null_auc, permutation_p
from tests.answers import made

RUNS, DECIDED, RECORDS, LEVEL = 200, 40, 120, 0.05


def one(seed: int, surface: float = 0.0) -> dict[str, Any]:
    """One data set without signal beyond the prompt's."""
    twins = seed % 2 == 1 and not surface
    records, vectors = made(RECORDS, seed=seed, twins=twins, surface=surface)
    result = predict(records, vectors, estimators=("logistic_l2",), seed=seed, progress=False)
    about = result.record["targets"]["wrong"]
    truth, proba = result.held()
    weights = np.ones((1, RECORDS), dtype=np.float32)
    plain = permutation_p(float(auc(truth, proba, weights)[0]), null_auc(truth, proba), 1.0)
    return {
        "seed": seed,
        "verdict": result.verdict(),
        "leaks": [c["name"] for c in result.audit() if c["verdict"] == "leak"],
        "auc": about["headline"]["auc"],
        "gain": about["headline"]["gain"],
        "gain_low": about["headline"]["gain_low"],
        "p": about["headline"]["p"],
        "p_not_widened": plain,
        "p_largest": about["p_largest"],
    }


def main(runs: int = RUNS) -> None:
    """All runs, and their rates."""
    started = time.perf_counter()
    found = [one(seed) for seed in tqdm(range(runs), desc="null runs")]
    bound = float(binom.ppf(0.999, runs, LEVEL) / runs)
    alarms = {
        "false alarms (headline or leak)": [r["verdict"] != "nothing" for r in found],
        "headlines": [r["verdict"] == "found" for r in found],
        "leaks found": [bool(r["leaks"]) for r in found],
        "permutation p of the AUC < .05": [r["p"] < LEVEL for r in found],
        "p of the largest effect < .05": [r["p_largest"] < LEVEL for r in found],
    }
    rows: list[dict[str, Any]] = [
        {"what": what, "measured": float(np.mean(which)), "bar": f"<= {bound:.3f}"}
        for what, which in alarms.items()
    ]
    free = float(np.mean([r["p_not_widened"] < LEVEL for r in found]))
    rows.append({"what": "permutation p without widening < .05", "measured": free})
    decided = [one(10_000 + s, 1.5) for s in tqdm(range(runs * DECIDED // RUNS), desc="decided")]
    most = float(binom.ppf(0.999, len(decided), LEVEL) / len(decided))
    alarms = [r["verdict"] != "nothing" for r in decided]
    what = "false alarms where the prompt decides"
    rows.append({"what": what, "measured": float(np.mean(alarms)), "bar": f"<= {most:.3f}"})
    rows.append({"what": "mean AUC", "measured": float(np.mean([r["auc"] for r in found]))})
    seconds = (time.perf_counter() - started) / (len(found) + len(decided))
    rows.append({"what": "a run", "measured": seconds, "unit": "s"})
    report(__file__, rows, {"runs": found, "decided": decided, "records": RECORDS, "bound": bound})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
