"""Processes of their own for tests, forked from one that has imported the heavy libraries: a start costs no seconds."""
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = 'import sys; from snakemake.cli import main; main(sys.argv[1:])'
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['snakemake.cli', 'tokencompose.training', 'tokencompose.data.captions'])


def _run(code, arguments, cwd, environment, said):
    os.chdir(cwd)
    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2): os.dup2(descriptor, stream)
    sys.argv = ['-c', *arguments]
    exec(compile(code, '<test>', 'exec'), {'__name__': '__main__'})


class Started:
    "A process that runs some Python; what it prints goes into one file."
    def __init__(self, code, *arguments, cwd=ROOT, **environment):
        self.folder = tempfile.TemporaryDirectory()
        self.said = Path(self.folder.name)/'said.txt'
        self.process = FORKS.Process(target=_run, args=(code, [str(a) for a in arguments], str(cwd), environment, str(self.said)))
        self.process.start()

    @property
    def pid(self): return self.process.pid

    @property
    def output(self): return self.said.read_text() if self.said.is_file() else ''

    def running(self): return self.process.is_alive()

    def wait(self, timeout=300) -> int:  # Exit code, negative for a signal
        self.process.join(timeout)
        assert not self.running(), f'still running after {timeout} seconds: {self.output[-2000:]}'
        return self.process.exitcode


def run_python(code, *arguments, timeout=300, **more) -> tuple:  # exit code, what it printed
    started = Started(code, *arguments, **more)
    return started.wait(timeout), started.output
