"""The views of a store that a query may name, in words."""

from __future__ import annotations

_COUNTS = "`counts` says whether it is the one that summaries use."
ABOUT: dict[str, str] = {
    "runs": "A row per run: status, settings, results (`RunSummary`); then every setting in which the store's runs differ, as \"lora.rank\".",
    "checkpoints": "A row per run and step at which something is known: losses, spectral means, drift, rates.",
    "rates": "A row per run, judged step, judge and definition of the misalignment rate.",
    "excluded": "Runs that are not done or cannot be read, and why.",
    "steps": "A row per run and optimiser step.",
    "heldout": "Losses on held-out rows.",
    "spectra": "Singular values of every adapted matrix.",
    "measures": "Spectral measures of every adapted matrix.",
    "probe": f"Contrast items. `instrument` is what measured, `source` its items; {_COUNTS}",
    "capability": "Questions with four choices; in front as in `probe`.",
    "ordinary": "Losses on ordinary dialogues; in front as in `probe`.",
    "answers": "Sampled answers; in front as in `probe`.",
    "tasks": "Standard tasks; in front as in `probe`.",
    "verdicts": f"A row per answer, judge and metric. `judge_id` is the same wherever the same judge judged; `answers_instrument` is that of the answers, {_COUNTS}",
}

EXAMPLES = (
    'SELECT optimizer, count(*) AS runs, avg(misalignment) AS rate FROM runs GROUP BY optimizer ORDER BY rate',
    'SELECT run, step, avg(stable_rank) AS stable_rank FROM measures GROUP BY ALL ORDER BY ALL',
    "SELECT a.run, a.answer, v.score FROM answers a JOIN verdicts v USING (experiment, run, step, question_id, paraphrase, sample) WHERE v.metric = 'aligned' AND v.score < 30",
)
