"""Each file of deploy/ against the linter or the schema of what will read it."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from shared.config import ApiKey, Config, Server
from shared.config_sources import load
from shared.errors import ConfigError
from shared.key_sources import read_keys
from tests.deploy.found import DEPLOY, ROOT, linter, system
from tests.system.clis import MODULES

MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
KUBERNETES = "1.35"
CADDY = {"SITE_ADDRESS": ":8080", "API_NAME": "api", "API_PORT": "8080"}


def succeeds(*command: object, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/nonexistent", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def documents(path: Path) -> list[dict]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def kinds(kind: str) -> dict[str, dict]:
    """The Kubernetes objects of a kind by their name."""
    found = [one for path in MANIFESTS for one in documents(path) if one["kind"] == kind]
    return {one["metadata"]["name"]: one for one in found}


# -- images


def test_hadolint_finds_no_fault_in_the_dockerfile():
    succeeds(linter("hadolint"), "--config", DEPLOY / "hadolint.yaml", DEPLOY / "Dockerfile")


def test_what_the_dockerfile_copies_is_there_and_not_kept_out():
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)

    paths = [path for line in copied for path in line.split()]

    assert {"shared", "api", "worker", "deploy/requirements.lock"} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [path for path in paths if f"!{path}" not in ignored] == []


def test_the_images_run_as_a_user_without_rights():
    text = (DEPLOY / "Dockerfile").read_text()

    for stage in ("runtime", "worker"):
        body = re.search(rf"^FROM \S+ AS {stage}$(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL)
        assert re.findall(r"^USER (\S+)$", body[1], re.MULTILINE)[-1] == "10001:10001"
    assert re.search(r"^FROM runtime AS api$", text, re.MULTILINE)


def test_the_images_packages_are_those_that_the_tests_run_with():
    def pins(path: Path) -> set[str]:
        return set(re.findall(r"^[\w.-]+==\S+", path.read_text(), re.MULTILINE))

    image = pins(DEPLOY / "requirements.lock")

    assert image - pins(ROOT / "requirements.lock") == set()
    assert not [pin for pin in image if re.match(r"pytest|ruff|mypy|fakeredis|uv==|hypothesis", pin)]


@pytest.mark.parametrize("name", ["claude", "codex", "gemini"])
def test_the_links_of_the_worker_image_lead_to_each_cli(name):
    if not MODULES.exists():
        pytest.skip("the CLIs are not installed; `make clis` installs them from npm")
    text = (DEPLOY / "Dockerfile").read_text()
    pattern = re.search(rf"ln -s \.\./node_modules/(\S+) bin/{name}\b", text)[1]

    (found,) = MODULES.glob(pattern)  # exactly one, or `ln` would refuse

    assert found.resolve().is_file()


# -- compose


def test_the_compose_file_keeps_to_its_schema():
    succeeds(linter("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_the_compose_file_names_what_is_there():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    stages = re.findall(r"^FROM \S+ AS (\w+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    services = compose["services"]

    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source == "./keys":  # made by whoever starts it
                continue
            assert (ROOT / source).exists() if source.startswith("./") else source in compose["volumes"], volume
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        if build := service.get("build"):
            assert build["target"] in stages
            assert service["read_only"] is True
    redis = services["redis"]["command"]
    assert "--appendonly yes" in redis
    assert "--maxmemory-policy noeviction" in redis
    assert services["api"]["deploy"]["replicas"] == 2
    assert "ports" not in services["api"], "only the proxy is to be reached"


def test_the_redis_of_compose_opens_to_none_without_the_password_which_stands_in_no_file_of_ours():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    redis = services["redis"]

    assert '--requirepass "${REDIS_PASSWORD:?' in redis["command"], "compose stops where it is not set"
    assert redis["environment"]["REDISCLI_AUTH"] == "${REDIS_PASSWORD:?}"
    assert "ports" not in redis
    for name in ("api", "worker"):
        url = services[name]["environment"]["CLINVK_REDIS_URL"]
        assert re.fullmatch(r"redis://:\$\{REDIS_PASSWORD:\?[^}]*\}@redis:6379/0", url)
    for name in ("proxy", "prometheus", "grafana"):
        assert "REDIS" not in str(services[name])
    assert "/.env" in (ROOT / ".gitignore").read_text().split()
    assert 'REDIS_PASSWORD=$(openssl rand -hex 24)" >>.env' in (ROOT / "docs" / "deployment.md").read_text()


def filled(text: str) -> str:
    """With digests where an example names a place for one."""
    for place, letter in (("REPLACE-ME-TOO", "a"), ("REPLACE-ME", "b"), ("HEX-OF-THE-KEY", "c"), ('HEX"', "d")):
        text = text.replace(f"sha256:{place}", f"sha256:{letter * 64}" + '"' * place.endswith('"'))
    return text


def settings_of(pairs: dict[str, str]) -> Config:
    """Where they name a file of keys, it is that of the manifests."""
    values = {name: re.sub(r"\$\{(\w+)[^}]*\}", r"\1", filled(str(value))) for name, value in pairs.items()}
    ours = {name: value for name, value in values.items() if name.startswith("CLINVK_")}
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write(filled(kinds("Secret")["clinvk-keys"]["stringData"]["api.keys"]))
        file.flush()
        if "CLINVK_SERVER__API_KEYS_FILE" in ours:
            ours["CLINVK_SERVER__API_KEYS_FILE"] = file.name
        return load(None, {"HOME": "/nonexistent", **ours}).config


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_settings_of_the_compose_file_are_right_and_stop_in_time(name):
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]

    config = settings_of(service["environment"])

    assert config.redis.url
    if name == "worker":
        assert float(service["stop_grace_period"].rstrip("s")) >= config.worker.shutdown_grace_secs + 45


# -- Kubernetes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_keeps_to_the_schema_of_kubernetes(path):
    succeeds(linter("kubernetes-validate"), "--strict", "--kubernetes-version", KUBERNETES, path)


def test_the_kustomization_takes_every_manifest_and_every_image():
    found = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())

    assert sorted(found["resources"]) == [path.name for path in MANIFESTS]
    pods = [*kinds("Deployment").values(), *kinds("StatefulSet").values()]
    images = {c["image"] for one in pods for c in one["spec"]["template"]["spec"]["containers"]}
    assert {image["name"] for image in found["images"]} == {name for name in images if name.startswith("clinvk")}


def test_every_pod_runs_without_rights_and_ends_in_good_order():
    pods = kinds("Deployment") | kinds("StatefulSet")
    config = settings_of(kinds("ConfigMap")["clinvk-settings"]["data"])

    for pod in pods.values():
        spec = pod["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            context = container["securityContext"]
            assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
            assert context["capabilities"] == {"drop": ["ALL"]}
    worker = pods["clinvk-worker"]["spec"]["template"]["spec"]
    assert worker["terminationGracePeriodSeconds"] >= config.worker.shutdown_grace_secs + 45
    assert "livenessProbe" not in worker["containers"][0], "a kill while Redis is away would take its runs with it"


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_settings_of_the_manifests_are_right(name):
    assert settings_of(given("kubernetes", name)).redis.url


def test_what_the_manifests_refer_to_is_there():
    text = "".join(path.read_text() for path in MANIFESTS)
    secrets, maps = kinds("Secret"), kinds("ConfigMap")

    assert set(re.findall(r"secretRef: \{ name: ([\w-]+)", text)) <= secrets.keys()
    assert set(re.findall(r"secretName: (clinvk-(?!tls)[\w-]+)", text)) <= secrets.keys()
    assert set(re.findall(r"configMapRef: \{ name: ([\w-]+)", text)) <= maps.keys()
    (container,) = kinds("Deployment")["clinvk-api"]["spec"]["template"]["spec"]["containers"]
    (file,) = (one["value"] for one in container["env"] if one["name"] == "CLINVK_SERVER__API_KEYS_FILE")
    (mount,) = (one for one in container["volumeMounts"] if one["name"] == "keys")
    assert file == f"{mount['mountPath']}/{next(iter(secrets['clinvk-keys']['stringData']))}"
    assert "prometheus.io/scrape" not in text, "it would be asked without a key"


# -- what docs/security.md says to set in production


def env_of(pod: dict) -> dict[str, str]:
    """What a container of a pod is given, from the maps and secrets too."""
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    found = {}
    for source in container["envFrom"]:
        kind, field = ("ConfigMap", "data") if "configMapRef" in source else ("Secret", "stringData")
        found |= kinds(kind)[next(iter(source.values()))["name"]][field]
    return found | {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def env_file(name: str) -> dict[str, str]:
    text = (DEPLOY / "systemd" / f"{name}.env.example").read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def given(way: str, name: str) -> dict[str, str]:
    if way == "compose":
        return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]["environment"]
    if way == "systemd":
        return env_file(name)
    return env_of((kinds("Deployment") | kinds("StatefulSet"))[f"clinvk-{name}"])


WAYS = ["compose", "kubernetes", "systemd"]


@pytest.mark.parametrize("way", WAYS)
def test_the_api_of_an_example_limits_its_callers_and_knows_its_proxies(way):
    config = settings_of(given(way, "api")).server

    assert config.rate_limit_enabled
    assert config.metrics_enabled
    assert config.trusted_proxies
    assert bool(config.api_keys) != bool(config.api_keys_file)
    for key in config.api_keys:
        assert isinstance(key, ApiKey)
        assert key.key.startswith("sha256:")
        assert key.role == "admin" or key.max_concurrent_runs


@pytest.mark.parametrize("way", WAYS)
def test_the_worker_of_an_example_bounds_where_and_how_a_cli_works(way):
    config = settings_of(given(way, "worker"))

    assert config.server.allowed_workdir_prefixes == ["/srv/projects"]
    for name in ("claude", "codex", "gemini"):
        backend = config.backend(name)
        assert (backend.max_approval_mode, backend.max_sandbox_mode) == ("auto", "workspace"), name


def test_the_keys_of_compose_are_digests_in_a_file_that_may_be_moved_into_its_place():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    api = compose["services"]["api"]

    assert "./keys:/etc/clinvk:ro" in api["volumes"]
    assert api["environment"]["CLINVK_SERVER__API_KEYS_FILE"] == "/etc/clinvk/api.keys"
    assert "/keys/" in (ROOT / ".gitignore").read_text().split()
    assert "secrets" not in api, "compose gives a service with a read-only root no secret that is no file"


def test_the_keys_of_the_manifests_open_nothing_before_they_are_replaced(tmp_path):
    path = tmp_path / "keys"
    text = kinds("Secret")["clinvk-keys"]["stringData"]["api.keys"]
    config = Config(server=Server(api_keys_file=str(path)))

    assert all(line.startswith("sha256:REPLACE-ME") for line in text.splitlines())
    path.write_text(text)
    with pytest.raises(ConfigError, match="64 small hex digits"):
        read_keys(config, {})
    path.write_text(filled(text))

    first, operator = read_keys(config, {})
    assert (first.name, first.role, first.max_concurrent_runs) == ("first", "user", 8)
    assert (operator.name, operator.role) == ("operator", "admin")


# -- systemd


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_takes_a_unit(path, tmp_path):
    text = path.read_text().replace("/opt/clinvk/.venv/bin/clinvk", "/bin/true")  # which is there
    unit = tmp_path / path.name
    unit.write_text(text.replace("network-online.target", "basic.target"))

    said = succeeds(system("systemd-analyze", "systemd"), "verify", "--man=no", "--recursive-errors=no", unit)

    assert path.stem not in said


def options(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if re.match(r"^[A-Z]\w+=", line))


def test_the_worker_unit_ends_the_warden_alone_and_waits_for_its_runs():
    found = options(DEPLOY / "systemd" / "clinvk-worker.service")

    assert found["KillMode"] == "mixed", "SIGTERM to the CLIs would end the runs that may finish"
    assert float(found["TimeoutStopSec"]) >= Config().worker.shutdown_grace_secs + 45
    assert found["NoNewPrivileges"] == "yes"
    assert found["ProtectSystem"] == "strict"


def test_the_unit_of_the_api_reads_its_keys_from_a_file_so_that_a_reload_changes_them():
    found = env_file("api")

    assert found["CLINVK_SERVER__API_KEYS_FILE"] == "/etc/clinvk/api.keys"
    assert not any(name in found for name in ("CLINVK_API_KEYS", "CLINVK_API_KEY", "CLINVK_SERVER__API_KEYS"))
    assert options(DEPLOY / "systemd" / "clinvk-api.service")["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert "/etc/clinvk/api.keys" in (ROOT / "docs" / "deployment.md").read_text()


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_example_environment_of_a_unit_is_right(name):
    assert settings_of(env_file(name)).redis.url.startswith("rediss://")


# -- proxies, Prometheus, Grafana


def test_caddy_takes_its_file_as_it_is_written(tmp_path):
    caddy, file = system("caddy", "caddy"), DEPLOY / "caddy" / "Caddyfile"

    succeeds(caddy, "validate", "--adapter", "caddyfile", "--config", file, HOME=str(tmp_path), **CADDY)
    assert succeeds(caddy, "fmt", file, HOME=str(tmp_path)).strip() == file.read_text().strip()


def test_promtool_takes_the_configuration_of_prometheus():
    succeeds(
        system("promtool", "prometheus"), "check", "config", "--syntax-only", DEPLOY / "prometheus" / "prometheus.yml"
    )


def test_grafana_is_given_a_data_source_and_the_dashboards():
    folder = DEPLOY / "grafana" / "provisioning"

    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "clinvk.yml").read_text())["providers"]

    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana:{provider['options']['path']}:ro" in mounts
    assert source["url"] == "http://prometheus:9090"
    for path in (DEPLOY / "grafana").glob("*.json"):
        json.loads(path.read_text())
