"""Which error will this code raise? Clean and corrupted snippets that end in different errors.

`task` is what `circuits.load_task("error_type")` returns; `python -m tasks.error_type` prints which
contrasts a model can do.
"""

from tasks.error_type.task import ErrorType

task = ErrorType()
