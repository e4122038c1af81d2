"""Indirect-object identification: the control task, whose circuit is known.

"When Mary and John went to the store, John gave a drink to" -> " Mary" (Wang et al. 2023,
"Interpretability in the wild"). The corrupted prompt repeats the other name.
"""

from tasks.ioi.task import IndirectObject

task = IndirectObject()
