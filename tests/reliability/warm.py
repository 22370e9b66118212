"""A process that has imported what mrseg needs and forks for every command: none pays for the imports.

It reads one request a line and answers with one line: how the command ended, and how long it took. TensorFlow
and ITK have computed nothing in it, so that their threads begin in the children.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback

import keras
from keras import layers

from mrseg import pages, prediction, preparation
from mrseg.cli import main
from mrseg.models import BUILDERS
from mrseg.studies import runner

#: They bring whatever the commands import.
WARM = (pages, prediction, preparation, runner)

_CAPABILITIES_3, _CAPSET = 0x20080522, 126  # of linux/capability.h; the call's number on x86-64


def tiny(input_shape, num_classes, *, filters=4):
    """Weights, statistics and random numbers: whatever a checkpoint has to hold."""
    image = keras.Input(input_shape, name="image")
    x = layers.Conv2D(filters, 3, padding="same", name="encoder1_conv1")(image)
    x = layers.BatchNormalization(name="encoder1_norm1")(x)
    x = layers.Dropout(0.2, name="encoder1_dropout")(x)
    x = layers.Conv2D(num_classes, 1, name="head_logits", dtype="float32")(x)
    return keras.Model(image, layers.Softmax(name="head_probabilities", dtype="float32")(x), name="tiny")


def run(request):
    """Runs a command in a forked process and ends it."""
    os.setpgid(0, 0)
    file = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    code = 70
    try:
        if "largest_bytes" in request:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_bytes"],) * 2)
        if request.get("as_anybody"):  # permissions hold for root too, once it has no capabilities
            header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
            assert os.getuid() or not ctypes.CDLL(None).syscall(_CAPSET, header, none)
        code = main(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve():
    """Answers until nobody asks any more."""
    BUILDERS["tiny"] = tiny
    for line in sys.stdin:
        request = json.loads(line)
        begin = time.perf_counter()
        child = os.fork()
        if not child:
            run(request)
        ended, status = os.waitpid(child, os.WNOHANG)
        while not ended:
            after = request.get("kill_after")
            if after is not None and time.perf_counter() - begin >= after:
                (os.kill if request.get("alone") else os.killpg)(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                break
            time.sleep(0.002)
            ended, status = os.waitpid(child, os.WNOHANG)
        answer = {"code": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - begin}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
