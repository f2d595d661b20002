// SPDX-License-Identifier: Apache-2.0
/*
 * Executes a CNI plugin as a container runtime does and takes the time from spawn to exit.
 *
 *   cni_exec -v VERB -x PLUGIN -f CONF -i PODS [-j WORKERS] [-n NETNS]
 *
 * PODS is a file of lines "<container id> <netns path>". Each is one execution: posix_spawn, configuration on
 * stdin, CNI_* in the environment (CNI_PATH and everything else is inherited), stdout read to its end, then
 * waitpid. WORKERS processes (default 1) take pods from one shared counter. NETNS is the node's namespace.
 *
 * Prints {"wall_s", "ms": [one per pod, in the order of PODS], "failed", "error"}; error is what the first failed
 * execution wrote to stdout. Written in C so that measuring costs little, and the same for every plugin.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PODS_MAX 4096
#define ENVIRONMENT_MAX 256
#define ERROR_MAX 1024

extern char **environ;

struct pod {
	char id[80];
	char netns[256];
};

/* Shared by all workers. */
struct board {
	atomic_int next;
	atomic_int failed;
	double ms[PODS_MAX];
	char error[ERROR_MAX];
};

struct job {
	const char *plugin, *conf, *verb;
	struct pod *pods;
	int pod_count;
	struct board *board;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* The inherited environment without what the runtime sets itself, followed by that. */
static void build_environment(char **env, const struct job *job, const struct pod *pod, char text[3][300])
{
	static char ifname[] = "CNI_IFNAME=eth0";
	int n = 0;

	for (char **e = environ; *e && n < ENVIRONMENT_MAX - 5; e++)
		if (strncmp(*e, "CNI_", 4) || !strncmp(*e, "CNI_PATH=", 9))
			env[n++] = *e;
	snprintf(text[0], sizeof(text[0]), "CNI_COMMAND=%s", job->verb);
	snprintf(text[1], sizeof(text[1]), "CNI_CONTAINERID=%s", pod->id);
	snprintf(text[2], sizeof(text[2]), "CNI_NETNS=%s", pod->netns);
	for (int i = 0; i < 3; i++)
		env[n++] = text[i];
	env[n++] = ifname;
	env[n] = NULL;
}

/* Reads all the plugin prints and waits for it; returns its wait status. */
static int finish(pid_t pid, int out, char *text)
{
	size_t used = 0;
	char rest[4096];
	int status;

	for (;;) {
		int full = used >= ERROR_MAX - 1;
		ssize_t n = full ? read(out, rest, sizeof(rest)) : read(out, text + used, ERROR_MAX - 1 - used);

		if (n <= 0)
			break;
		if (!full)
			used += n;
	}
	text[used] = '\0';
	close(out);
	if (waitpid(pid, &status, 0) != pid)
		die("waitpid");
	return status;
}

static void execute(const struct job *job, int index)
{
	char *const argv[] = { (char *)job->plugin, NULL };
	char *env[ENVIRONMENT_MAX], env_text[3][300], text[ERROR_MAX];
	posix_spawn_file_actions_t actions;
	int out[2], error, status;
	double start;
	pid_t pid;

	build_environment(env, job, &job->pods[index], env_text);
	start = now();
	if (pipe2(out, O_CLOEXEC))
		die("pipe");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, job->conf, O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, out[1], 1);
	error = posix_spawn(&pid, job->plugin, &actions, NULL, argv, env);
	close(out[1]);
	if (error) {
		fprintf(stderr, "%s: %s\n", job->plugin, strerror(error));
		exit(1);
	}
	status = finish(pid, out[0], text);
	job->board->ms[index] = (now() - start) * 1000;
	posix_spawn_file_actions_destroy(&actions);
	if (status && !atomic_fetch_add(&job->board->failed, 1))
		snprintf(job->board->error, ERROR_MAX, "%s", text[0] ? text : "(no output)");
}

static void work(const struct job *job)
{
	int index;

	while ((index = atomic_fetch_add(&job->board->next, 1)) < job->pod_count)
		execute(job, index);
}

static int read_pods(const char *path, struct pod *pods)
{
	FILE *file = fopen(path, "r");
	int n = 0;

	if (!file)
		die(path);
	while (n < PODS_MAX && fscanf(file, "%79s %255s", pods[n].id, pods[n].netns) == 2)
		n++;
	fclose(file);
	return n;
}

static void print_text(const char *text)
{
	putchar('"');
	for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
		if (*c == '"' || *c == '\\')
			printf("\\%c", *c);
		else if (*c < 0x20 || *c >= 0x7f)
			printf("\\u%04x", *c);
		else
			putchar(*c);
	}
	putchar('"');
}

static void print_result(const struct job *job, double wall_s)
{
	printf("{\"wall_s\":%.6f,\"ms\":[", wall_s);
	for (int i = 0; i < job->pod_count; i++)
		printf("%s%.4f", i ? "," : "", job->board->ms[i]);
	printf("],\"failed\":%d,\"error\":", atomic_load(&job->board->failed));
	print_text(job->board->error);
	puts("}");
}

/* Runs the job in that many processes; returns 0 if all ended well. */
static int run(const struct job *job, int workers)
{
	int status, bad = 0;

	for (int i = 0; i < workers; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		if (!pid) {
			work(job);
			_exit(0);
		}
	}
	while (wait(&status) > 0)
		bad |= status;
	return bad;
}

int main(int argc, char **argv)
{
	static struct pod pods[PODS_MAX];
	struct job job = { .pods = pods };
	int option, fd, workers = 1, bad;
	double start;

	while ((option = getopt(argc, argv, "v:x:f:i:j:n:")) != -1) {
		switch (option) {
		case 'v': job.verb = optarg; break;
		case 'x': job.plugin = optarg; break;
		case 'f': job.conf = optarg; break;
		case 'i': job.pod_count = read_pods(optarg, pods); break;
		case 'j': workers = atoi(optarg); break;
		case 'n':
			fd = open(optarg, O_RDONLY | O_CLOEXEC);
			if (fd < 0 || setns(fd, CLONE_NEWNET))
				die(optarg);
			close(fd);
			break;
		default: return 2;
		}
	}
	if (!job.verb || !job.plugin || !job.conf || !job.pod_count) {
		fprintf(stderr, "usage: cni_exec -v VERB -x PLUGIN -f CONF -i PODS [-j WORKERS] [-n NETNS]\n");
		return 2;
	}
	job.board = mmap(NULL, sizeof(*job.board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (job.board == MAP_FAILED)
		die("mmap");
	start = now();
	bad = run(&job, workers);
	print_result(&job, now() - start);
	return bad ? 1 : 0;
}
