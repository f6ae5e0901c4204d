"""Few examples, the same in each run. HYPOTHESIS_PROFILE=many runs other ones, a hundred times as many."""

import os

import pytest

hypothesis = pytest.importorskip('hypothesis')
hypothesis.settings.register_profile('few', max_examples=10, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile('many', max_examples=1000, deadline=None, database=None)
hypothesis.settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'few'))
