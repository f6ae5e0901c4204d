"""Few examples, the same in each run. HYPOTHESIS_PROFILE=many runs other ones, a hundred times as many."""

import os
from contextlib import suppress

with suppress(ImportError):  # the modules skip themselves without it
    from hypothesis import settings

    settings.register_profile('few', max_examples=10, deadline=None, derandomize=True, database=None)
    settings.register_profile('many', max_examples=1000, deadline=None, database=None)
    settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'few'))
