"""Test and measure this package on the GPU of this machine, and write a page about it."""

import argparse
import contextlib
import os
import time


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='gpu_report', description=__doc__)
    parser.add_argument('--out', default='docs', help='folder for the page, its plots and the results (default: docs)')
    parser.add_argument('--minutes', type=float, default=19, help='time limit (default: 19); call again to go on')
    parser.add_argument('--smoke', action='store_true', help='rehearse with tiny models, also on a CPU')
    parser.add_argument('--no-tests', action='store_true', help='leave out the GPU tests')
    parser.add_argument('--write-only', action='store_true', help='only write the page, from the results so far')
    parser.add_argument('--started', type=float, help='when the time began, in seconds since 1970 (default: now)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    deadline = (args.started or time.time()) + 60 * args.minutes

    from ...command_line import errors_in_one_line

    with errors_in_one_line():
        report(args, deadline)


def report(args: argparse.Namespace, deadline: float) -> None:
    """Measure until the deadline, and write the page.

    Raises:
        ValueError: there is no GPU, or the results are from another machine.
        SystemExit: with code ``RESTART``, if the GPU no longer answers.
    """
    import torch

    from ...errors import UserError
    from .. import benchmark
    from ..benchmark.foreign import why_missing
    from . import document, runner
    from .steps import LIBRARIES, Settings, plan, smoke_settings

    if not args.smoke and not args.write_only and benchmark.device() == 'cpu':
        raise UserError('found no CUDA device; --smoke rehearses on a CPU')
    benchmark.prepare()
    results = runner.Results(os.path.join(args.out, f'{document.NAME}.json'))
    reasons = {library: why_missing(library) for library in LIBRARIES}
    log = None if args.no_tests else os.path.join(args.out, f'{document.NAME}_tests.txt')
    installed = [library for library in LIBRARIES if reasons[library] is None]
    steps = plan(smoke_settings() if args.smoke else Settings(), results, installed, log)
    if not args.write_only:
        results.content['left_out'] = [reason for reason in reasons.values() if reason]
        print('\n'.join(results.content['left_out']), flush=True)
        results.save()
        runner.exit_at(deadline + 25)
        # a rehearsal takes the same way, without compiling
        stance = torch.compiler.set_stance('force_eager') if args.smoke else contextlib.nullcontext()
        with stance:
            runner.run_steps(steps, results, deadline)
    done = sum(results.finished(step.key) for step in steps)
    print(f'{done} of {len(steps)} steps done; wrote {document.write_document(args.out, results, steps, args.smoke)}')


if __name__ == '__main__':
    main()
