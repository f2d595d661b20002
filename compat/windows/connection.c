// SPDX-License-Identifier: Apache-2.0
/*
 * connection.c - where the daemon is, the token, and connections. They are kept for the calls that follow: programs list
 * objects one by one, and to connect costs more than to ask.
 *
 * SAMEWIRE_HNS_ADDRESS		host:port of the daemon's hns_listen (default 127.0.0.1:9434)
 * SAMEWIRE_HNS_TOKEN		the token, or
 * SAMEWIRE_HNS_TOKEN_FILE	a file that holds it
 *
 * What is not in the environment is looked for in samewire-hns.ini beside the library: address=, token=, token_file=.
 */
#include "connection.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef _WIN32
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#endif

#define DEFAULT_ADDRESS "127.0.0.1:9434"
#define MAX_KEPT 16
#define MAX_IDLE_MS 10000 /* less than what the daemon waits for the next request */
#define ADDRESS_BYTES 128

/* Connections that wait for the next call. */
static lock_t kept_lock = LOCK_INITIAL;
static struct kept {
	socket_t socket;
	uint64_t since_ms;
	char address[ADDRESS_BYTES];
} kept[MAX_KEPT];
static int kept_count;

/* The value of `key=` in the settings file, to be freed. */
static char *from_settings(const char *key)
{
	char *text = settings_beside(), *line = text, *found = NULL;
	size_t length = strlen(key);

	while (line && *line && !found) {
		size_t n = strcspn(line, "\r\n");

		if (n > length && !strncmp(line, key, length) && line[length] == '=') {
			found = malloc(n - length);
			if (found) {
				memcpy(found, line + length + 1, n - length - 1);
				found[n - length - 1] = 0;
			}
		}
		line += n;
		line += strspn(line, "\r\n");
	}
	free(text);
	return found;
}

static char *setting(const char *variable, const char *key)
{
	char *value = environment(variable);

	return value ? value : from_settings(key);
}

char *daemon_token(void)
{
	char *value = setting("SAMEWIRE_HNS_TOKEN", "token"), *file;

	if (!value && (file = setting("SAMEWIRE_HNS_TOKEN_FILE", "token_file"))) {
		value = file_text(file);
		free(file);
	}
	if (value)
		value[strcspn(value, " \t\r\n")] = 0;
	return value;
}

void fail(struct answer *answer, const char *format, ...)
{
	va_list arguments;
	char text[512];

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	answer->status = 0;
	answer->body = malloc(strlen(text) + 1);
	if (answer->body)
		strcpy(answer->body, text);
	answer->size = strlen(text);
}

static socket_t take_kept(const char *address)
{
	socket_t found = NO_SOCKET;

	lock(&kept_lock);
	while (kept_count && found == NO_SOCKET) {
		struct kept *last = &kept[--kept_count];

		if (!strcmp(last->address, address) && clock_ms() - last->since_ms < MAX_IDLE_MS && socket_silent(last->socket))
			found = last->socket;
		else
			socket_close(last->socket);
	}
	unlock(&kept_lock);
	return found;
}

void connection_keep(socket_t s, const char *address)
{
	int has_room;

	lock(&kept_lock);
	has_room = kept_count < MAX_KEPT && strlen(address) < ADDRESS_BYTES;
	if (has_room) {
		kept[kept_count].socket = s;
		kept[kept_count].since_ms = clock_ms();
		strcpy(kept[kept_count++].address, address);
	}
	unlock(&kept_lock);
	if (!has_room)
		socket_close(s);
}

char *daemon_address(void)
{
	char *address = setting("SAMEWIRE_HNS_ADDRESS", "address");

	if (!address && (address = malloc(sizeof(DEFAULT_ADDRESS))))
		strcpy(address, DEFAULT_ADDRESS);
	return address;
}

socket_t connection_new(const char *text, struct answer *answer)
{
	char host[ADDRESS_BYTES] = "";
	const char *colon = strrchr(text, ':');
	int port = colon ? atoi(colon + 1) : 0;
	struct sockaddr_in v4 = { .sin_family = AF_INET };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };
	socket_t s = NO_SOCKET;

	if (colon && (size_t)(colon - text) < sizeof(host) && colon - text > 2) {
		size_t skip = text[0] == '[';

		memcpy(host, text + skip, (size_t)(colon - text) - 2 * skip);
	}
	v4.sin_port = v6.sin6_port = htons((uint16_t)port);
	if (port < 1 || port > 65535 || sockets_ready()) {
		fail(answer, "SAMEWIRE_HNS_ADDRESS: %s is not host:port", text);
	} else if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
		s = socket(AF_INET, SOCK_STREAM, 0);
		if (s != NO_SOCKET && connect(s, (struct sockaddr *)&v4, sizeof(v4))) {
			socket_close(s);
			s = NO_SOCKET;
		}
	} else if (inet_pton(AF_INET6, host, &v6.sin6_addr) == 1) {
		s = socket(AF_INET6, SOCK_STREAM, 0);
		if (s != NO_SOCKET && connect(s, (struct sockaddr *)&v6, sizeof(v6))) {
			socket_close(s);
			s = NO_SOCKET;
		}
	} else {
		fail(answer, "SAMEWIRE_HNS_ADDRESS: %s is no address", host);
	}
	if (s == NO_SOCKET && !answer->body)
		fail(answer, "the samewire daemon does not answer at %s", text);
	if (s != NO_SOCKET)
		socket_timeout(s, TIMEOUT_S);
	return s;
}

socket_t connection_take(const char *address, struct answer *answer)
{
	socket_t s = take_kept(address);

	return s != NO_SOCKET ? s : connection_new(address, answer);
}
