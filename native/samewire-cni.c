// SPDX-License-Identifier: Apache-2.0
/*
 * The CNI plugin executable. It forwards its environment and stdin to the samewire daemon and prints the
 * answer; src/samewire/cni/wire.py has the protocol, src/samewire/cni/twin.py the same in Python.
 *
 * Of its own it answers only VERSION, which must work without a daemon, and "try again later" (code 11)
 * when the daemon does not answer in time. For DEL too: the runtime has to repeat it, or the pod's address
 * and endpoint would be left for ever. There are some that do not (podman), so a DEL waits for a daemon that
 * is not there, as long as a restart of it may take.
 *
 * A runtime starts it for each pod and waits for it, so it is linked with musl: before main() the static
 * glibc asks the CPU what it is, which under a hypervisor is an exit for each question, and makes ready
 * what nothing here uses.
 *
 * Started by the name of another plugin (a symbolic link), it says so in CNI_SAMEWIRE_PLUGIN.
 *
 * SAMEWIRE_CNI_SOCKET		socket of the daemon; else the configuration's "samewireSocket", else
 *				/run/samewire/cni.sock
 * SAMEWIRE_CNI_TIMEOUT_S	time for all of it in seconds (default 30)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/samewire/cni.sock"
#define DEFAULT_TIMEOUT_S 30
#define MAX_TIMEOUT_S 3600
#define MAX_REQUEST (1 << 20)
#define MAX_REPLY (1 << 20)
#define VERSION_WAIT_MS 2000 /* only who leaves stdin open waits; who writes to it may be slow */
#define PAUSE_MS 20
#define NOT_CONNECTED (-2) /* in place of a length */
#define TOO_LONG (-1)
#define IO_FAILURE 5
#define TRY_AGAIN 11
#define NO_ANSWER "the samewire daemon does not answer"
#define NO_END "the network configuration has no end"
#define NOT_IN_TIME "not in time"

extern char **environ;

/* Oldest first; the same list as SUPPORTED_VERSIONS in cni/result.py. */
static const char *const versions[] = { "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0" };
#define VERSIONS (sizeof(versions) / sizeof(versions[0]))

/* The same list as ALIASES in cni/dialects/names.py. */
static const char *const plugins[] = { "win-bridge", "win-overlay", "sdnbridge", "sdnoverlay", "azure-vnet", "flannel" };
#define PLUGINS (sizeof(plugins) / sizeof(plugins[0]))

static char request[MAX_REQUEST + 1];
static char reply[MAX_REPLY + 1];

/* The daemon's socket as errors name it: what JSON could not hold is a question mark. */
static char where[sizeof(((struct sockaddr_un *)NULL)->sun_path)];

/* How long a DEL waits for a daemon to come back: a part of the time for all of it. */
static int patience_ms;

/* What the alarm prints. Built ahead: its handler may call little more than write(). */
static const char *volatile late;

/*
 * Whether a read or write is to be tried again. A runtime may have made its ends of our pipes non-blocking, and so
 * ours: then we wait.
 */
static int again(int fd, short event)
{
	struct pollfd ready = { .fd = fd, .events = event };
	int error = errno;

	if (error == EAGAIN)
		poll(&ready, 1, -1);
	return error == EAGAIN || error == EINTR;
}

static void print(const char *text, size_t length)
{
	while (length) {
		ssize_t n = write(STDOUT_FILENO, text, length);

		if (n < 0 && again(STDOUT_FILENO, POLLOUT))
			continue;
		if (n <= 0)
			_exit(1);
		text += n;
		length -= n;
	}
}

static void on_alarm(int signal)
{
	(void)signal;
	print(late, strlen(late));
	_exit(1);
}

/* The version that a configuration names, if it is one we know, else the latest. */
static const char *version_of(const char *conf)
{
	const char *p = strstr(conf, "\"cniVersion\"");

	if (p) {
		p += strlen("\"cniVersion\"");
		p += strspn(p, " \t\r\n:");
		for (size_t i = 0; i < VERSIONS; i++) {
			size_t n = strlen(versions[i]);

			if (p[0] == '"' && !strncmp(p + 1, versions[i], n) && p[n + 1] == '"')
				return versions[i];
		}
	}
	return versions[VERSIONS - 1];
}

static size_t format_error(char *text, size_t size, const char *version, int code, const char *message,
			   const char *details)
{
	return snprintf(text, size, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s\",\"details\":\"%s\"}\n",
			version, code, message, details);
}

static int no_answer(const char *version, const char *what, const char *why)
{
	char details[256], text[512];

	snprintf(details, sizeof(details), "%s: %s: %s", where, what, why);
	print(text, format_error(text, sizeof(text), version, TRY_AGAIN, NO_ANSWER, details));
	return 1;
}

static int too_long(const char *what)
{
	char text[512];

	print(text, format_error(text, sizeof(text), versions[VERSIONS - 1], IO_FAILURE, "too long", what));
	return 1;
}

static void set_alarm(void)
{
	const char *wanted = getenv("SAMEWIRE_CNI_TIMEOUT_S");
	static char text[256];
	double seconds = wanted ? strtod(wanted, NULL) : DEFAULT_TIMEOUT_S;
	struct itimerval timer = { 0 };
	sigset_t blocked; /* by whoever started us, perhaps: a mask is inherited */

	if (!(seconds >= 0.001 && seconds <= MAX_TIMEOUT_S))
		seconds = DEFAULT_TIMEOUT_S;
	patience_ms = seconds * 1000 / 3;
	timer.it_value.tv_sec = seconds;
	timer.it_value.tv_usec = (seconds - timer.it_value.tv_sec) * 1e6;
	format_error(text, sizeof(text), versions[VERSIONS - 1], TRY_AGAIN, NO_END, NOT_IN_TIME);
	late = text;
	signal(SIGALRM, on_alarm);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGALRM);
	sigprocmask(SIG_UNBLOCK, &blocked, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* Reads to the end of file, or until nothing comes for wait_ms (-1 = wait). Returns the length, or TOO_LONG. */
static ssize_t read_all(int fd, char *buffer, size_t size, int wait_ms)
{
	size_t length = 0;

	for (;;) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		ssize_t n;

		if (wait_ms >= 0 && poll(&ready, 1, wait_ms) <= 0)
			return length;
		n = read(fd, buffer + length, size - length);
		if (n < 0 && again(fd, POLLIN))
			continue;
		if (n <= 0)
			return length;
		length += n;
		if (length == size)
			return TOO_LONG;
	}
}

static int print_versions(void)
{
	char text[256];
	size_t length;

	read_all(STDIN_FILENO, request, MAX_REQUEST, VERSION_WAIT_MS);
	length = snprintf(text, sizeof(text), "{\"cniVersion\":\"%s\",\"supportedVersions\":[", version_of(request));
	for (size_t i = 0; i < VERSIONS; i++)
		length += snprintf(text + length, sizeof(text) - length, "%s\"%s\"", i ? "," : "", versions[i]);
	length += snprintf(text + length, sizeof(text) - length, "]}\n");
	print(text, length);
	return 0;
}

/* The path of the daemon's socket that a configuration names; false = none that could be one. */
static int socket_of(const char *conf, char *path, size_t size)
{
	const char *p = strstr(conf, "\"samewireSocket\"");
	size_t length;

	if (!p)
		return 0;
	p += strlen("\"samewireSocket\"");
	p += strspn(p, " \t\r\n:");
	if (*p++ != '"' || *p != '/')
		return 0;
	length = strcspn(p, "\"\\");
	if (p[length] != '"' || length >= size)
		return 0;
	memcpy(path, p, length);
	path[length] = '\0';
	return 1;
}

/* Puts the CNI_* variables and the end mark into the request. Returns the length, 0 = too long. */
static size_t put_environment(const char *self)
{
	const char *name = strrchr(self, '/');
	size_t length = 0;

	name = name ? name + 1 : self;
	for (size_t i = 0; i < PLUGINS; i++)
		if (!strcmp(name, plugins[i]))
			setenv("CNI_SAMEWIRE_PLUGIN", name, 1);

	for (char **variable = environ; *variable; variable++) {
		size_t n = strlen(*variable) + 1;

		if (strncmp(*variable, "CNI_", 4))
			continue;
		if (n >= MAX_REQUEST - length)
			return 0;
		memcpy(request + length, *variable, n);
		length += n;
	}
	request[length] = '\0';
	return length + 1;
}

/* Where the daemon is; from here on it is the one that is waited for. */
static const char *find_daemon(const char *conf, const char *version)
{
	const char *path = getenv("SAMEWIRE_CNI_SOCKET");
	static char named[sizeof(where)], text[512];
	char details[256];

	if (!path || !path[0])
		path = socket_of(conf, named, sizeof(named)) ? named : DEFAULT_SOCKET;
	for (size_t i = 0; path[i] && i < sizeof(where) - 1; i++)
		where[i] = path[i] < ' ' || path[i] > '~' || path[i] == '"' || path[i] == '\\' ? '?' : path[i];
	snprintf(details, sizeof(details), "%s: " NOT_IN_TIME, where);
	format_error(text, sizeof(text), version, TRY_AGAIN, NO_ANSWER, details);
	late = text;
	return path;
}

static int connect_daemon(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd;

	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

/* A daemon that refuses the request may close before it has all of it; then its answer is there to read. */
static void send_request(int fd, size_t length)
{
	for (size_t sent = 0; sent < length;) {
		ssize_t n = send(fd, request + sent, length - sent, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		sent += n;
	}
	shutdown(fd, SHUT_WR);
}

/* One try. Returns the length of the answer, 0 = none, TOO_LONG, or NOT_CONNECTED with errno. */
static ssize_t ask(const char *path, size_t length)
{
	int fd = connect_daemon(path);
	ssize_t answer;

	if (fd < 0)
		return NOT_CONNECTED;
	send_request(fd, length);
	answer = read_all(fd, reply, MAX_REPLY, -1);
	close(fd);
	return answer;
}

/* Whether a try found no daemon, or one that ended over it: the next one may do what was asked. */
static int none_there(ssize_t answer)
{
	return !answer || (answer == NOT_CONNECTED && (errno == ENOENT || errno == ECONNREFUSED));
}

int main(int argc, char **argv)
{
	const char *command = getenv("CNI_COMMAND"), *version, *path;
	ssize_t conf, length;
	size_t environment;
	char *end;
	long status;

	set_alarm();
	if (command && !strcmp(command, "VERSION"))
		return print_versions();
	environment = put_environment(argc ? argv[0] : "");
	if (!environment)
		return too_long("environment");
	conf = read_all(STDIN_FILENO, request + environment, MAX_REQUEST - environment, -1);
	if (conf < 0)
		return too_long("network configuration");
	version = version_of(request + environment);
	path = find_daemon(request + environment, version);
	if (!command || strcmp(command, "DEL"))
		patience_ms = 0;
	while (none_there(length = ask(path, environment + conf)) && patience_ms > 0) {
		poll(NULL, 0, PAUSE_MS);
		patience_ms -= PAUSE_MS;
	}
	if (length == NOT_CONNECTED)
		return no_answer(version, "connect", strerror(errno));
	if (length == TOO_LONG)
		return no_answer(version, "answer", "too long");
	status = strtol(reply, &end, 10);
	if (end == reply || *end != '\n' || status < 0 || status > 255)
		return no_answer(version, "answer", length ? "malformed" : "none");
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
	end++;
	print(end, length - (end - reply));
	return status;
}
