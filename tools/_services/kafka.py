"""Apache Kafka as one KRaft node (broker and controller in one JVM) from jars: installed ones or Maven's.

May start `java` and `mvn`, and write below the state directory. All state directories of a working copy share
the jars.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import uuid
from pathlib import Path

from . import kafka_ping, packages, ports, procs, settings, state
from .errors import ServiceError, Unavailable

POM = state.REPO / "tools" / "kafka" / "pom.xml"
JAVA_PACKAGES = ("default-jre-headless",)
MAVEN_PACKAGES = ("maven",)


def fetch(name: str, version: str | None) -> str:
    packages.ensure("java", JAVA_PACKAGES)
    return _resolve(name, version)[0]


def start(name: str, version: str | None, entry: state.Entry) -> state.Entry:
    java = packages.ensure("java", JAVA_PACKAGES)
    resolved, classpath = _resolve(name, version or entry.version or None)
    home = state.services_dir() / f"{name}-{resolved}-data"
    port, controller = ports.assign(name)
    properties = _write_properties(home, resolved, port, controller)
    if not (home / "log" / "meta.properties").exists():
        _format(java, classpath, home, properties)
    log = state.services_dir() / f"{name}.log"
    brief = settings.KAFKA_JVM_BRIEF if os.environ.get(settings.BRIEF_VARIABLE) else ()
    command = [java, *settings.KAFKA_JVM, *brief, *_logging(), "-cp", classpath, "kafka.Kafka", str(properties)]
    pid = procs.spawn(command, log)
    changes = {"pid": pid, "born": procs.born(pid), "port": port, "extra_port": controller, "version": resolved}
    started = state.record(name, **changes, url=f"127.0.0.1:{port}", data_dir=str(home), log=str(log), reason="")
    procs.wait_ready(pid, lambda: kafka_ping.answers("127.0.0.1", port), log, settings.START_TIMEOUT_S)
    return started


def _resolve(name: str, version: str | None) -> tuple[str, str]:
    """(version, classpath): an installed Kafka of the right line, else the first candidate that Maven can bring."""
    installed = _installed(name)
    if installed and version in (None, installed[0]):
        return installed
    failures: list[str] = []
    for candidate in (version,) if version else settings.KAFKA_VERSIONS[name]:
        try:
            return candidate, f"{_jars(candidate)}/*"
        except ServiceError as error:
            failures.append(f"{candidate}: {error}")
    raise Unavailable("no Kafka jars: " + "; ".join(failures))


def _installed(name: str) -> tuple[str, str] | None:
    home = os.environ.get("KAFKA_HOME")
    if not home:
        return None
    jars = sorted(Path(home, "libs").glob("kafka-clients-*.jar"))
    found = re.fullmatch(r"kafka-clients-(\d+)\.(.+)\.jar", jars[0].name) if jars else None
    wanted = settings.KAFKA_VERSIONS[name][0].partition(".")[0]
    if found is None or found[1] != wanted:
        return None
    return f"{found[1]}.{found[2]}", f"{home}/libs/*"


def _jars(version: str) -> Path:
    directory = state.default_dir() / f"kafka-{version}"
    complete = directory / ".complete"
    with state.locked(f"kafka-{version}", state.default_dir()):
        if complete.exists():
            return directory
        mvn = packages.ensure("mvn", MAVEN_PACKAGES)
        shutil.rmtree(directory, ignore_errors=True)
        options = ["-q", "-B", "-f", str(POM), f"-Dkafka.version={version}", "-DincludeScope=runtime"]
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={directory}"]
        procs.run([mvn, *options, *goal], timeout_s=settings.INSTALL_TIMEOUT_S)
        complete.touch()
    return directory


def _write_properties(home: Path, version: str, port: int, controller: int) -> Path:
    listeners = f"PLAINTEXT://127.0.0.1:{port}"
    values = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "log.dirs": str(home / "log"),
        **settings.KAFKA_SHARED,
        **settings.KAFKA_LOCAL,
        **(settings.KAFKA_LOCAL_4 if int(version.partition(".")[0]) >= 4 else {}),
    }
    home.mkdir(parents=True, exist_ok=True)
    path = home / "server.properties"
    path.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
    return path


def _format(java: str, classpath: str, home: Path, properties: Path) -> None:
    # A first character "-" would be read as an option.
    cluster_id = "R" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
    shutil.rmtree(home / "log", ignore_errors=True)
    jvm = ("-Xmx256m", "-XX:+UseSerialGC", *settings.KAFKA_JVM_BRIEF)
    tool = [java, *jvm, *_logging(), "-cp", classpath, "kafka.tools.StorageTool"]
    procs.run([*tool, "format", "--cluster-id", cluster_id, "--config", str(properties)])


def _logging() -> list[str]:
    prefix = "-Dorg.slf4j.simpleLogger"
    shape = [f"{prefix}.showDateTime=true", f"{prefix}.dateTimeFormat=HH:mm:ss.SSS", f"{prefix}.showThreadName=false"]
    return [*shape, f"{prefix}.log.org.apache.kafka.common.config.AbstractConfig=warn"]
