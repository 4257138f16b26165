#!/usr/bin/env bash
# Installs what the test cluster needs, on Debian and Ubuntu. With "if-wanted" (make test): only as root and where
# CI=true or MMSADA_TEST_CLUSTER=1, and no failure stops the caller, as the tests skip and say why.
set -euo pipefail
packages=(slurm-wlm munge iproute2)
programs=(slurmctld slurmd sbatch munged ip tc)
policy=/usr/sbin/policy-rc.d

wanted() {
  [[ ${1:-} != if-wanted ]] || { ((EUID == 0)) && [[ ${CI:-} == true || ${MMSADA_TEST_CLUSTER:-} == 1 ]]; }
}

present() {
  local program
  for program in "${programs[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || return 1
  done
}

apt() {
  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get --quiet --quiet --yes --no-install-recommends \
    -o DPkg::Lock::Timeout=120 "$@" </dev/null
}

# The packages' own services are not started: the cluster has daemons of its own.
install() {
  if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || apt update
  apt install "${packages[@]}" >/dev/null
}

main() {
  if ! wanted "$@" || present; then
    return
  fi
  local problem=""
  if ((EUID != 0)); then
    problem="needs root"
  elif ! command -v apt-get >/dev/null; then
    problem="this is no Debian or Ubuntu"
  else
    echo "test cluster: apt-get install ${packages[*]}"
    install || problem="apt-get failed"
  fi
  if [[ -n $problem ]]; then
    echo "test cluster: ${packages[*]} could not be installed ($problem)" >&2
    [[ ${1:-} == if-wanted ]]
  fi
}

main "$@"
