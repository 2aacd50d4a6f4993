# What the examples share: where the programs are, and a root file system of busybox alone.
ISORUN=${ISORUN:-isorun}
BUSYBOX=${BUSYBOX:-/bin/busybox}
command -v "$ISORUN" >/dev/null || { echo "no isorun: set ISORUN, or put it on PATH" >&2; exit 1; }
[ -x "$BUSYBOX" ] || { echo "no static busybox at $BUSYBOX: apt install busybox-static, or set BUSYBOX" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "run it as root" >&2; exit 1; }
work=$(mktemp -d)

# tree DIR: busybox and its applets.
tree() {
	mkdir -p "$1/bin" "$1/proc" "$1/sys" "$1/dev" "$1/run" "$1/tmp" "$1/etc"
	cp "$BUSYBOX" "$1/bin/busybox"
	for applet in sh cat ls dd df echo env grep head mount od sleep stat touch; do
		ln -s busybox "$1/bin/$applet"
	done
}

# tensor FILE: a safetensors file with one tensor, "w", of 4096 floats.
tensor() {
	header='{"w":{"dtype":"F32","shape":[64,64],"data_offsets":[0,16384]}}'
	printf '\\%o\\0\\0\\0\\0\\0\\0\\0' "${#header}" | xargs -0 printf >"$1.new"
	printf %s "$header" >>"$1.new"
	head -c 16384 /dev/urandom >>"$1.new"
	# Whoever sees the name sees the whole file.
	mv "$1.new" "$1"
}
