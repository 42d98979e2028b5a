#!/usr/bin/env bash
# Installs moe2: into .venv of this checkout for the demo and the tests, or on a host as a system service. See help.
set -euo pipefail
readonly CALLED_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

LOG=install.log

# shellcheck source=install/say.sh
source install/say.sh
# shellcheck source=install/python.sh
source install/python.sh
# shellcheck source=install/system.sh
source install/system.sh
# shellcheck source=install/checkout.sh
source install/checkout.sh
# shellcheck source=install/detect.sh
source install/detect.sh
# shellcheck source=install/options.sh
source install/options.sh
# shellcheck source=install/llama.sh
source install/llama.sh
# shellcheck source=install/release.sh
source install/release.sh
# shellcheck source=install/devices.sh
source install/devices.sh
# shellcheck source=install/units.sh
source install/units.sh
# shellcheck source=install/polkit.sh
source install/polkit.sh
# shellcheck source=install/deploy.sh
source install/deploy.sh
# shellcheck source=install/host.sh
source install/host.sh
# shellcheck source=install/uninstall.sh
source install/uninstall.sh
# shellcheck source=install/doctor.sh
source install/doctor.sh

usage() {
  cat <<'USAGE'
Usage: ./install.sh COMMAND

Within this checkout, for trying and for working on it:
  demo [--once]           install moe2, start one coordinator and two agents with a small real model on this machine,
                          send prompts, show what they took; runs until Ctrl-C, with --once until the table is shown
  test [--all] [PYTEST-ARGUMENT…]
                          install what the tests need; run the linters, the type checker and the tests; with --all also
                          those that boot a system in a container (root and apt-get)

On a host, as a system service under /opt/moe2 (docs/operations.md); needs sudo:
  coordinator [--postgresql]
                          install and start the coordinator, and make an enrolment token for the agents; with
                          --postgresql also what it takes to share a database with others (docs/pair.md)
  agent --coordinator URL --token-file FILE --model FILE… [--ca-file FILE] [--name NAME] [--profile SIMULATED-HOST]
                          install and start an agent; llama.cpp is compiled for this host's GPU where there is one
  upgrade                 put this checkout to use; the former release goes on if the new one does not come up
  uninstall [--purge]     remove everything but configuration and state; with --purge these and the users as well
  doctor                  what of the installation is as it should be, and what to do about the rest
    --wheels DIR          for coordinator, agent, upgrade: install from the wheels in DIR, without a network; where the
                          host's Python is too old, also from a standalone CPython in DIR (docs/operations.md)
    --dry-run             for all but doctor: show every step and change nothing

  help                    this text

Demo and tests go into .venv and .demo of this checkout; delete them to remove it. Needs Python 3.11 or newer with venv
and a C++ compiler; as root, what is missing is installed with apt-get. The first run compiles llama.cpp. A host command
on a system with an older Python (JetPack 5 and 6) gets a current one under /opt/moe2/python.

  PYTHON=python3.12       in the environment: the Python to use
  CMAKE_ARGS='…'          in the environment: more options for compiling llama.cpp
USAGE
}

command=${1:-help}
if (($# > 0)); then shift; fi
case $command in
  demo) demo "$@" ;;
  test) run_tests "$@" ;;
  coordinator) install_coordinator "$@" ;;
  agent) install_agent "$@" ;;
  upgrade) upgrade "$@" ;;
  uninstall) uninstall "$@" ;;
  doctor) doctor "$@" ;;
  help | --help | -h) usage ;;
  *)
    usage >&2
    die "there is no command $command."
    ;;
esac
